"""Train a small network to tell nodules from the rest of the lung, and test it on patients that it has not seen.

    python examples/train_nodules.py [RESULTS]

RESULTS is the folder of a finished run with annotations; the default is `results`, which `snakemake --cores all` makes
of the demo cohort. Needs torch (`pip install torch`); one or two minutes on two cores. Prints the area under the ROC
curve (AUC) on the patients of the split `test`.
"""

import argparse

import numpy as np
import torch

import lungmill

SHAPE_MM = (24, 24, 24)
WIDER_MM = (36, 36, 36)  # what a turned patch is cut out of
CLASSES = ("lung", "nodule")


def prepared(batch):
    """int16 HU to float32 with a channel axis, lung near -1 and tissue near 0.5."""
    images, labels = batch
    return [np.clip(images[:, np.newaxis].astype(np.float32) / 600 + 0.5, -1, 1), labels.astype(np.float32)]


AUGMENT = lungmill.Compose(
    [
        lungmill.RandomAffine(rotation_degrees=180, zoom=0.1, translation_mm=3),
        lungmill.RandomFlip(axes=(0, 1, 2)),
        lungmill.RandomNoise(sigma=20),
    ],
    fill_mode="constant",
    cval=-1024,
)


def augmented(batch, rng):
    images, labels = batch
    images = [lungmill.crop_center(AUGMENT(image, rng=rng), SHAPE_MM) for image in images]
    return [np.stack(images), labels]


def network():
    layers = []
    channels = 1
    for wider in (8, 16, 32):
        layers += [torch.nn.Conv3d(channels, wider, 3, padding=1), torch.nn.BatchNorm3d(wider), torch.nn.ReLU()]
        layers += [torch.nn.MaxPool3d(2)]
        channels = wider
    return torch.nn.Sequential(*layers, torch.nn.AdaptiveMaxPool3d(1), torch.nn.Flatten(), torch.nn.Linear(channels, 1))


def train(cohort, steps, seed):
    patients = cohort.select(split=["train", "val"])
    source = lungmill.PatchSource(patients, WIDER_MM, classes=CLASSES, seed=seed, length=32 * steps)
    flow = lungmill.DataFlow(
        [source.images, source.labels], 32, nb_proc_workers=1, preprocessor=[augmented, prepared], rng=seed
    )
    torch.manual_seed(seed)
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    batches = flow.flow()
    for step in range(steps):
        images, labels = map(torch.from_numpy, next(batches))
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(images)[:, 0], labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 25 == 24:
            print(f"step {step + 1}: loss {loss.item():.3f}", flush=True)
    batches.close()
    return model.eval()


@torch.no_grad()
def test(model, cohort, seed):
    """AUC on patches of the test patients."""
    source = lungmill.PatchSource(cohort.select(split="test"), SHAPE_MM, classes=CLASSES, seed=seed, length=400)
    flow = lungmill.DataFlow([source.images, source.labels], 50, preprocessor=prepared, loop_forever=False)
    scores, truth = [], []
    for images, labels in flow.flow():
        scores.append(model(torch.from_numpy(images))[:, 0].numpy())
        truth.append(labels)
    return area_under_curve(np.concatenate(scores), np.concatenate(truth))


def area_under_curve(scores, truth):
    """The chance that a nodule scores higher than a patch without one (Mann and Whitney), ties counting half."""
    nodules, others = scores[truth == 1], scores[truth == 0]
    difference = nodules[:, np.newaxis] - others
    return float(np.mean(difference > 0) + np.mean(difference == 0) / 2)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="?", default="results")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    cohort = lungmill.open_cohort(options.results)
    print(cohort)
    model = train(cohort, options.steps, options.seed)
    print(f"AUC on {len(cohort.select(split='test'))} test patients: {test(model, cohort, options.seed):.4f}")


if __name__ == "__main__":
    main()
