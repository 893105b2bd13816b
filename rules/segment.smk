# Lung labels: 1 right, 2 left.
rule segment:
    input:
        volume="<results>/volumes/{patient}.npy",
        geometry="<results>/volumes/{patient}.json",
    output:
        mask="<results>/masks/{patient}.npy",
        labels="<results>/masks/{patient}.json",
    log:
        "<logs>/segment/{patient}.log",
    benchmark:
        "<logs>/segment/{patient}.tsv"
    conda:
        "../envs/arrays.yaml"
    params:
        step={"segment": config["segment"], "code": code("segment")},
    script:
        "../scripts/segment.py"
