"""A study: many models side by side, from one YAML file to one table.

    config.py    the file
    plan.py      its cells and steps: which `slmkit` command makes what, and what it needs
    work.py      steps on disk: what is done, by whom one is being done, and doing one
    local.py     all steps on this machine
    slurm.py     all steps as Slurm jobs that depend on each other
    table.py     the results as a table and a picture

Every step is a command of slmkit that goes on where it was interrupted; a study only knows their order, and what their
exit codes say. Why not Snakemake (9.27, with its Slurm executor 2.7): it takes exit code 75 for a failure, deletes the
run directory then and knows only a number of retries, the same for an error that no retry mends; its executor is a
process that must live as long as the jobs, which it asks about, for they do not depend on each other in Slurm. What it
would have saved, an order of steps, is the smallest part, and it brings 60 packages of 300 MB.
"""
