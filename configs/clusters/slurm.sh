#!/bin/sh
# sbatch configs/clusters/slurm.sh configs/char_gpt.toml mesh.data=16 mesh.fsdp=2     32 GPUs: 4 nodes of 8
# One process a node; JAX asks Slurm for the others. The folder of runs must be on a file system that all nodes see.
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --time=12:00:00
#SBATCH --signal=TERM@120
# Two minutes before the end Slurm sends SIGTERM: a checkpoint is written, and `jaxnet resume` goes on from it.
srun --kill-on-bad-exit=1 .venv/bin/jaxnet train "$@" --join detect
