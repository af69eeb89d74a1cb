# Outputs marked with report() are what `snakemake --report FILE.html` shows, beside the rules and their times.
rule make_table:
    input:
        table_inputs,
    output:
        "results/{prefix}{grid}.csv",
        "results/{prefix}{grid}.md",
        "results/{prefix}{grid}.tex",
        report(
            "results/{prefix}{grid}.html",
            caption="../report/table.rst",
            category="Tables",
            subcategory=scale_of,
            labels=grid_title,
        ),
    log:
        "results/logs/table/{prefix}{grid}.log",
    wildcard_constraints:
        grid=rf"(?!({one_of(drawings)}|costs)\.|index\.html)[A-Za-z0-9][A-Za-z0-9_-]*?",
    threads: 1
    resources:
        **on_cluster,
    params:
        scale=scale_of,
    shell:
        "mirai table {wildcards.grid} --scale {params.scale} --log {log}"


# A figure drawn from a table's metrics; what has none is told so.
rule make_plot:
    input:
        figure_inputs,
    output:
        report(
            "results/{prefix}{grid}.png",
            caption="../report/figure.rst",
            category="Figures",
            subcategory=scale_of,
            labels=grid_title,
        ),
        "results/{prefix}{grid}.pdf",
    log:
        "results/logs/figure/{prefix}{grid}.log",
    wildcard_constraints:
        grid=rf"(?!({one_of(drawings)})\.)[A-Za-z0-9][A-Za-z0-9_-]*?",
    threads: 1
    resources:
        **on_cluster,
        gpu=figure_gpus,
    params:
        scale=scale_of,
    shell:
        "mirai figure {wildcards.grid} --scale {params.scale} --log {log}"


# A figure with data of its own: samples, token maps, neighbourhoods.
rule make_drawing:
    input:
        figure_inputs,
    output:
        report(
            "results/{prefix}{grid}.png",
            caption="../report/figure.rst",
            category="Figures",
            subcategory=scale_of,
            labels=grid_title,
        ),
        "results/{prefix}{grid}.pdf",
        "results/{prefix}{grid}.csv",
    log:
        "results/logs/figure/{prefix}{grid}.log",
    wildcard_constraints:
        grid=one_of(drawings),
    threads: 1
    resources:
        **on_cluster,
        gpu=figure_gpus,
    params:
        scale=scale_of,
    shell:
        "mirai figure {wildcards.grid} --scale {params.scale} --log {log}"


# What there is of a scale on one page; it starts no training.
rule make_page:
    input:
        page_inputs,
    output:
        "results/{prefix}index.html",
    log:
        "results/logs/table/{prefix}index.log",
    localrule: True
    threads: 1
    params:
        scale=scale_of,
    shell:
        "mirai page --scale {params.scale} --log {log}"


# Every table and figure of the paper at a scale, what they cost, and the page with them.
rule make_everything:
    input:
        all_inputs,
    output:
        "results/{prefix}all",
    log:
        "results/logs/table/{prefix}all.log",
    localrule: True
    threads: 1
    params:
        scale=scale_of,
    shell:
        "mirai costs --scale {params.scale} --log {log} && mirai page --scale {params.scale} --log {log}"
        " && printf '%s\\n' {input} > {output}"


# What the trainings of a scale have cost so far; no table waits for it.
rule sum_costs:
    input:
        costs_inputs,
    output:
        "results/{prefix}costs.csv",
    log:
        "results/logs/table/{prefix}costs.log",
    localrule: True
    threads: 1
    params:
        scale=scale_of,
    shell:
        "mirai costs --scale {params.scale} --log {log}"
