# The whole DAG: codes -> states -> samples -> metrics -> tables and figures. Logic lives in the package `mirai`;
# rules only connect. `snakemake results/demo/table2.csv --cores 2`; -n plans without running.
from snakemake.utils import min_version

min_version("9.0")


# Read with `--sdm apptainer` only: an image in which this package is installed.
container: "mirai.sif"


report: "workflow/report/workflow.rst"


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
    # Raised here, unlike in an input function, SystemExit unlocks the folder on its way out.
    told(refuse_launcher, leave=sys.exit)
    told(plan.start, leave=sys.exit)
