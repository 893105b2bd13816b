# Lung labels, 1 right and 2 left, what was measured on them, and positions to sample patches from.
rule segment:
    input:
        volume="<results>/volumes/{patient}.npy",
        geometry="<results>/volumes/{patient}.json",
    output:
        mask="<results>/masks/{patient}.npy",
        labels="<results>/masks/{patient}.json",
        positions="<results>/masks/{patient}.positions.npz",
    log:
        "<logs>/segment/{patient}.log",
    benchmark:
        "<logs>/segment/{patient}.tsv"
    conda:
        "../envs/arrays.yaml"
    resources:
        **NEEDS.of("segment"),
    params:
        step={"segment": config["segment"], "code": code("segment")},
    script:
        "../scripts/segment.py"
