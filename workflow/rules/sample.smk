rule sample_codes:
    input:
        stage_inputs,
    output:
        "results/store/samples/{key}/samples.json",
    log:
        "results/logs/samples/{key}.log",
    benchmark:
        "results/logs/samples/{key}.tsv"
    threads: rank_threads
    resources:
        **on_cluster_by_stage,
        gpu=stage_gpus,
    shell:
        "mirai sample {wildcards.key} --log {log}"
