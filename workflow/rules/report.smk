rule make_table:
    input:
        table_inputs,
    output:
        csv="results/{prefix}{grid}.csv",
        markdown="results/{prefix}{grid}.md",
    log:
        "results/logs/table/{prefix}{grid}.log",
    params:
        key=table_key,
        scale=lambda wildcards: paths.scale_of(wildcards.prefix),
    threads: 1
    shell:
        "mirai table {wildcards.grid} --scale {params.scale} --log {log}"


rule make_figure:
    input:
        figure_inputs,
    output:
        "results/{prefix}{grid}_{figure}.png",
    log:
        "results/logs/figure/{prefix}{grid}_{figure}.log",
    params:
        key=table_key,
        scale=lambda wildcards: paths.scale_of(wildcards.prefix),
    threads: 1
    shell:
        "mirai figure {wildcards.figure} {wildcards.grid} --scale {params.scale} --log {log}"
