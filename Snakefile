# The whole DAG: codes -> states -> samples -> metrics -> tables and figures. Logic lives in the package `mirai`;
# rules only connect. `snakemake results/demo/table2.csv`, `snakemake results/table2.csv --profile slurm`.
from snakemake.utils import min_version

min_version("9.0")


container: None


include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/sample.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/report.smk"


rule all:
    default_target: True
    input:
        "results/demo/demo.csv",


onstart:
    told(plan.start, leave=sys.exit)  # raised here, unlike in an input function, it unlocks the folder on its way
