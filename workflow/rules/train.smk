# A state's working files are not declared: Snakemake deletes the declared outputs of a failed job, and training resumes.
rule train_state:
    input:
        stage_inputs,
    output:
        "results/store/state/{key}/weights.json",
    log:
        "results/logs/state/{key}.log",
    benchmark:
        "results/logs/state/{key}.tsv"
    threads: 1
    shell:
        "mirai train {wildcards.key} --log {log}"


# Only after `mirai gc`: a new fork needs the optimiser of a state whose weights are still there.
rule restore_state:
    input:
        restore_inputs,
    output:
        "results/store/state/{key}/resume.json",
    log:
        "results/logs/state/{key}.restore.log",
    benchmark:
        "results/logs/state/{key}.restore.tsv"
    threads: 1
    shell:
        "mirai train {wildcards.key} --restore --log {log}"
