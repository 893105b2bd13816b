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
    log:
        "<logs>/pack_zarr/{patient}.log",
    benchmark:
        "<logs>/pack_zarr/{patient}.tsv"
    conda:
        "../envs/arrays.yaml"
    resources:
        **NEEDS.of("pack"),
    params:
        step=pack_settings("zarr"),
    script:
        "../scripts/pack.py"


use rule pack_zarr as pack_zarr_zip with:
    output:
        store="<results>/zarr/{patient}.zarr.zip",
    log:
        "<logs>/pack_zarr_zip/{patient}.log",
    benchmark:
        "<logs>/pack_zarr_zip/{patient}.tsv"
    params:
        step=pack_settings("zarr_zip"),


use rule pack_zarr as pack_bcolz with:
    output:
        store=directory("<results>/bcolz/{patient}.bcolz"),
    log:
        "<logs>/pack_bcolz/{patient}.log",
    benchmark:
        "<logs>/pack_bcolz/{patient}.tsv"
    params:
        step=pack_settings("bcolz"),


use rule pack_zarr as pack_hdf5 with:
    output:
        store="<results>/hdf5/{patient}.h5",
    log:
        "<logs>/pack_hdf5/{patient}.log",
    benchmark:
        "<logs>/pack_hdf5/{patient}.tsv"
    params:
        step=pack_settings("hdf5"),


use rule pack_zarr as pack_npz with:
    output:
        store="<results>/npz/{patient}.npz",
    log:
        "<logs>/pack_npz/{patient}.log",
    benchmark:
        "<logs>/pack_npz/{patient}.tsv"
    params:
        step=pack_settings("npz"),


rule cohort_zarr:
    output:
        group="<results>/cohort.zarr/zarr.json",
    log:
        "<logs>/cohort_zarr/cohort.log",
    conda:
        "../envs/arrays.yaml"
    resources:
        **NEEDS.of("table"),
    params:
        step={"code": code("cohort_zarr")},
    script:
        "../scripts/cohort_zarr.py"


# Sizes of what was made of a patient, where results lie in S3: tables of the cohort are made from these.
rule products:
    input:
        [f"<results>/{file}" for file in PRODUCT_FILES],
    output:
        sizes="<results>/products/{patient}.json",
    log:
        "<logs>/products/{patient}.log",
    conda:
        "../envs/tables.yaml"
    params:
        step={"products": MADE, "code": code("products")},
    script:
        "../scripts/products.py"
