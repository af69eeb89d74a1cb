rule train_features:
    input:
        stage_inputs,
    output:
        "results/store/features/{key}/features.json",
    log:
        "results/logs/features/{key}.log",
    benchmark:
        "results/logs/features/{key}.tsv"
    # early, with the reference: they find out whether the images suffice
    priority: 1
    threads: rank_threads
    resources:
        **on_cluster_by_stage,
        gpu=stage_gpus,
    shell:
        "mirai features {wildcards.key} --log {log}"


rule make_reference:
    input:
        stage_inputs,
    output:
        "results/store/reference/{key}/reference.json",
    log:
        "results/logs/reference/{key}.log",
    benchmark:
        "results/logs/reference/{key}.tsv"
    priority: 1
    threads: rank_threads
    resources:
        **on_cluster_by_stage,
        gpu=stage_gpus,
    shell:
        "mirai reference {wildcards.key} --log {log}"


rule evaluate_samples:
    input:
        stage_inputs,
    output:
        "results/store/metrics/{key}/metrics.json",
    log:
        "results/logs/metrics/{key}.log",
    benchmark:
        "results/logs/metrics/{key}.tsv"
    threads: rank_threads
    resources:
        **on_cluster_by_stage,
        gpu=stage_gpus,
    shell:
        "mirai evaluate {wildcards.key} --log {log}"
