#!/usr/bin/env bash
# Trains with DeepSpeed's launcher on this machine, or on the machines of a hostfile.
#
#   CONFIG=launch/quickstart.yaml PROCESSES=2 launch/train.sh [KEY=VALUE ...]
#
# CONFIG      run config (YAML); required
# PROCESSES   processes on each machine, one per GPU (without GPUs: any number); default 1, or the hostfile's slots
# HOSTFILE    DeepSpeed hostfile, lines such as "node1 slots=8"; empty for this machine alone
# MASTER_PORT port of the first process; default: one that is free on its machine
#
# Everything after the script's name goes to `slmkit launch`, which checks and starts; --dry-run shows what would run
# where. Start it again to continue an interrupted run. For Slurm see train.sbatch.
set -euo pipefail

exec slmkit launch --config "${CONFIG:?name the run config}" \
    ${PROCESSES:+--processes "$PROCESSES"} \
    ${HOSTFILE:+--hostfile "$HOSTFILE"} \
    ${MASTER_PORT:+--master-port "$MASTER_PORT"} \
    "$@"
