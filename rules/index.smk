# A verdict per patient, and the one checkpoint: from here on only accepted patients.
rule index:
    input:
        dicom=dicom_input,
    output:
        verdict="<results>/index/{patient}.json",
    log:
        "<logs>/index/{patient}.log",
    benchmark:
        "<logs>/index/{patient}.tsv"
    conda:
        "../envs/dicom.yaml"
    resources:
        **NEEDS.of("index"),
    params:
        step=lambda wildcards: {
            **dicom_state(wildcards),
            "patient": wildcards.patient,
            "series": config["series"],
            "series_uid": PATIENTS[wildcards.patient].series_uid,
            "code": code("index"),
        },
    script:
        "../scripts/index.py"


checkpoint verdicts:
    input:
        verdicts=expand(f"{RESULTS}/index/{{patient}}.json", patient=PATIENTS),
        # Planning what follows looks into it; where a patient's steps are planned together, it has to be there by then.
        annotations=ancient(ANNOTATIONS) if SETTINGS.is_demo and REMOTE.is_used else [],
    output:
        table="<results>/index/verdicts.tsv",
    log:
        "<logs>/verdicts/cohort.log",
    conda:
        "../envs/tables.yaml"
    resources:
        **NEEDS.of("table"),
    params:
        step={
            "names": {patient: PATIENTS[patient].name for patient in PATIENTS},
            "code": code("verdicts"),
        },
    script:
        "../scripts/verdicts.py"
