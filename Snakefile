# lungmill: a cohort of chest-CT DICOM folders becomes training-ready arrays.
# Settings are in config.yaml; what each stage does is in rules/, how in scripts/lungmill/.
from snakemake.utils import min_version

min_version("9.20")


configfile: "config.yaml"


include: "rules/common.smk"
include: "rules/demo.smk"
include: "rules/index.smk"
include: "rules/resample.smk"
include: "rules/segment.smk"
include: "rules/pack.smk"
include: "rules/patches.smk"
include: "rules/dataset.smk"
include: "rules/report.smk"


rule all:
    default_target: True
    input:
        "<results>/cohort.tsv",
        "<results>/dataset.tsv",
        "<results>/report/index.html",
        COHORT_GROUP,


onsuccess:
    tell_where_to_look()


localrules:
    all,
    verdicts,
    cohort,
    cohort_zarr,
    demo_annotations,
    dataset,
