# The built-in cohort: synthetic patients as real DICOM series, and their true nodules. Where results lie in S3, a patient
# is a .zip: what travels is one file.
rule demo:
    output:
        dicom="<results>/demo/dicom/{patient}.zip" if REMOTE.is_used else directory("<results>/demo/dicom/{patient}"),
    log:
        "<logs>/demo/{patient}.log",
    benchmark:
        "<logs>/demo/{patient}.tsv"
    conda:
        "../envs/dicom.yaml"
    resources:
        **NEEDS.of("demo"),
    params:
        step={"seed": config["seed"], "code": code("demo")},
    script:
        "../scripts/demo.py"


rule demo_annotations:
    output:
        annotations="<results>/demo/annotations.csv",
    log:
        "<logs>/demo_annotations/cohort.log",
    conda:
        "../envs/dicom.yaml"
    resources:
        **NEEDS.of("demo"),
    params:
        step={"seed": config["seed"], "code": code("demo_annotations")},
    script:
        "../scripts/demo_annotations.py"
