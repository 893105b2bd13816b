# Compressed stores of image and mask: one rule per format, so that asking for one more computes only that.
rule pack_zarr:
    input:
        volume="<results>/volumes/{patient}.npy",
        geometry="<results>/volumes/{patient}.json",
        mask="<results>/masks/{patient}.npy",
        labels="<results>/masks/{patient}.json",
    output:
        # Each file by name: Snakemake marks a directory() with a file of its own, which zarr warns about.
        store=expand("<results>/cohort.zarr/{{patient}}/{file}", file=ZARR_FILES),
    params:
        step=pack_settings("zarr"),
    log:
        "<logs>/pack_zarr/{patient}.log",
    benchmark:
        "<logs>/pack_zarr/{patient}.tsv"
    conda:
        "../envs/arrays.yaml"
    script:
        "../scripts/pack.py"


use rule pack_zarr as pack_bcolz with:
    output:
        store=directory("<results>/bcolz/{patient}.bcolz"),
    params:
        step=pack_settings("bcolz"),
    log:
        "<logs>/pack_bcolz/{patient}.log",
    benchmark:
        "<logs>/pack_bcolz/{patient}.tsv"


use rule pack_zarr as pack_hdf5 with:
    output:
        store="<results>/hdf5/{patient}.h5",
    params:
        step=pack_settings("hdf5"),
    log:
        "<logs>/pack_hdf5/{patient}.log",
    benchmark:
        "<logs>/pack_hdf5/{patient}.tsv"


use rule pack_zarr as pack_npz with:
    output:
        store="<results>/npz/{patient}.npz",
    params:
        step=pack_settings("npz"),
    log:
        "<logs>/pack_npz/{patient}.log",
    benchmark:
        "<logs>/pack_npz/{patient}.tsv"


rule cohort_zarr:
    output:
        group="<results>/cohort.zarr/zarr.json",
    params:
        step={"code": code("cohort_zarr")},
    log:
        "<logs>/cohort_zarr/cohort.log",
    conda:
        "../envs/arrays.yaml"
    script:
        "../scripts/cohort_zarr.py"
