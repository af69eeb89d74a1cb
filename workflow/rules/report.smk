rule make_table:
    input:
        table_inputs,
    output:
        csv="results/{prefix}{grid}.csv",
        markdown="results/{prefix}{grid}.md",
    log:
        "results/logs/table/{prefix}{grid}.log",
    threads: 1
    params:
        scale=lambda wildcards: paths.scale_of(wildcards.prefix),
    shell:
        "mirai table {wildcards.grid} --scale {params.scale} --log {log}"


rule make_figure:
    input:
        figure_inputs,
    output:
        "results/{prefix}{grid}_{figure}.png",
    log:
        "results/logs/figure/{prefix}{grid}_{figure}.log",
    threads: 1
    params:
        scale=lambda wildcards: paths.scale_of(wildcards.prefix),
    shell:
        "mirai figure {wildcards.figure} {wildcards.grid} --scale {params.scale} --log {log}"
