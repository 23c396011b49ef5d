"""A study: many models side by side, from one YAML file to one table.

    config.py    the file
    plan.py      its cells and steps: which `slmkit` command makes what, and what it needs
    work.py      steps on disk: what is done, by whom one is being done, and doing one
    local.py     all steps on this machine
    slurm.py     all steps as Slurm jobs that depend on each other
    table.py     the results as a table and a picture

Every step is a command of slmkit that goes on where it was interrupted; a study only knows their order, and what their
exit codes say. Why not Snakemake (9.27, with its Slurm executor 2.8): exit code 75 is a failure to it, at which it
removes the step's outputs, a run with its checkpoints too, and it tries every failure equally often, also those that no
try mends. Its executor is a process that must live as long as the jobs, which do not depend on each other in Slurm, and
with it come some 60 packages, where an order of steps is the smallest part of the work.
"""
