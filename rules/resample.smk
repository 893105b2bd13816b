# One interpolation from the scan's own samples to the output grid.
rule resample:
    input:
        dicom=dicom_input,
        verdict="<results>/index/{patient}.json",
    output:
        volume="<results>/volumes/{patient}.npy",
        geometry="<results>/volumes/{patient}.json",
    log:
        "<logs>/resample/{patient}.log",
    benchmark:
        "<logs>/resample/{patient}.tsv"
    conda:
        "../envs/dicom.yaml"
    resources:
        **NEEDS.of("resample"),
    params:
        step=lambda wildcards: {
            **dicom_state(wildcards),
            **config["resample"],
            "code": code("resample"),
        },
    script:
        "../scripts/resample.py"
