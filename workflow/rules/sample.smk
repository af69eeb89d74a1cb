rule sample_codes:
    input:
        stage_inputs,
    output:
        "results/store/samples/{key}/samples.json",
    log:
        "results/logs/samples/{key}.log",
    benchmark:
        "results/logs/samples/{key}.tsv"
    threads: 1
    shell:
        "mirai sample {wildcards.key} --log {log}"
