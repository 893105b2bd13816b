# The two tables of a finished cohort: what became of every patient, and what a training loop opens.
rule cohort:
    input:
        verdicts="<results>/index/verdicts.tsv",
        products=of_accepted(*SHOWN, "volumes/{patient}.json", "masks/{patient}.json"),
        # They stand beside the table anyway, unless they have to be fetched.
        index=expand(f"{RESULTS}/index/{{patient}}.json", patient=PATIENTS) if REMOTE.is_used else [],
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
        products=of_accepted(*SHOWN),
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
