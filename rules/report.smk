# One page to look at.
rule report:
    input:
        cohort="<results>/cohort.tsv",
        dataset="<results>/dataset.tsv",
        verdicts=expand(f"{RESULTS}/index/{{patient}}.json", patient=PATIENTS),
        volumes=of_accepted("volumes/{patient}.npy", "volumes/{patient}.json"),
        masks=of_accepted("masks/{patient}.npy", "masks/{patient}.json"),
    output:
        page="<results>/report/index.html",
    log:
        "<logs>/report/cohort.log",
    benchmark:
        "<logs>/report/cohort.tsv"
    conda:
        "../envs/tables.yaml"
    resources:
        **NEEDS.of("report"),
    params:
        step={"logs": LOGS, "code": code("report")},
    script:
        "../scripts/report.py"
