# A state's working files are not declared: Snakemake deletes the declared outputs of a failed job, and training resumes.
# On a cluster both rules only wait for a job of their own, on no core; an error in it is not to be tried again.
rule train_state:
    input:
        stage_inputs,
    output:
        "results/store/state/{key}/weights.json",
    log:
        "results/logs/state/{key}.log",
    benchmark:
        "results/logs/state/{key}.tsv"
    retries: 0
    localrule: True
    threads: int(launcher != "slurm")
    resources:
        gpu=training_gpus,
    params:
        options=training_options,
    shell:
        "mirai train {wildcards.key} {params.options} --log {log}"


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
    retries: 0
    localrule: True
    threads: int(launcher != "slurm")
    resources:
        gpu=training_gpus,
    params:
        launcher=launcher,
    shell:
        "mirai train {wildcards.key} --restore --launcher {params.launcher} --log {log}"
