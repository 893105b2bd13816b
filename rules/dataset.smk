# The two tables of a finished cohort: what became of every patient, and what a training loop opens.
rule cohort:
    input:
        verdicts="<results>/index/verdicts.tsv",
        products=of_accepted(*PRODUCT_FILES, "volumes/{patient}.json", "masks/{patient}.json"),
    output:
        table="<results>/cohort.tsv",
    log:
        "<logs>/cohort/cohort.log",
    conda:
        "../envs/tables.yaml"
    resources:
        **NEEDS.of("table"),
    params:
        step={
            "names": {patient: PATIENTS[patient].name for patient in PATIENTS},
            "code": code("cohort"),
        },
    script:
        "../scripts/cohort.py"


rule dataset:
    input:
        verdicts="<results>/index/verdicts.tsv",
        products=of_accepted(*PRODUCT_FILES),
    output:
        table="<results>/dataset.tsv",
    log:
        "<logs>/dataset/cohort.log",
    conda:
        "../envs/tables.yaml"
    resources:
        **NEEDS.of("table"),
    params:
        step=lambda wildcards: {
            "patients": dataset_rows(),
            "products": MADE,
            "fractions": config["split"]["fractions"],
            "seed": config["seed"],
            "code": code("dataset"),
        },
    script:
        "../scripts/dataset.py"
