rule train_tokenizer:
    input:
        stage_inputs,
    output:
        "results/store/tokenizer/{key}/tokenizer.json",
    log:
        "results/logs/tokenizer/{key}.log",
    benchmark:
        "results/logs/tokenizer/{key}.tsv"
    threads: rank_threads
    resources:
        **on_cluster_by_stage,
        gpu=stage_gpus,
    shell:
        "mirai tokenizer {wildcards.key} --log {log}"


rule extract_codes:
    input:
        stage_inputs,
    output:
        "results/store/codes/{key}/codes.json",
    log:
        "results/logs/codes/{key}.log",
    benchmark:
        "results/logs/codes/{key}.tsv"
    threads: rank_threads
    resources:
        **on_cluster_by_stage,
        gpu=stage_gpus,
    shell:
        "mirai codes {wildcards.key} --log {log}"


rule train_encoder:
    input:
        stage_inputs,
    output:
        "results/store/encoder/{key}/encoder.json",
    log:
        "results/logs/encoder/{key}.log",
    benchmark:
        "results/logs/encoder/{key}.tsv"
    threads: rank_threads
    resources:
        **on_cluster_by_stage,
        gpu=stage_gpus,
    shell:
        "mirai encoder {wildcards.key} --log {log}"
