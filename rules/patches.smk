# Samples for training: one array per class, with the position each patch came from.
rule patches:
    input:
        volume="<results>/volumes/{patient}.npy",
        geometry="<results>/volumes/{patient}.json",
        positions="<results>/masks/{patient}.positions.npz",
        # ancient: a patient is redone when its own nodules change, which the parameters show.
        annotations=ancient(ANNOTATIONS) if ANNOTATIONS and (SETTINGS.is_demo or not REMOTE.is_used) else [],
    output:
        patches="<results>/patches/{patient}.h5",
    log:
        "<logs>/patches/{patient}.log",
    benchmark:
        "<logs>/patches/{patient}.tsv"
    conda:
        "../envs/arrays.yaml"
    resources:
        **NEEDS.of("patches"),
    params:
        step=lambda wildcards: {
            **config["patches"],
            "nodules": nodules(wildcards),
            "seed": config["seed"],
            "code": code("patches"),
        },
    script:
        "../scripts/patches.py"
