#!/bin/bash
#SBATCH --job-name=quantkit
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --signal=TERM@300

# One task per GPU and no launcher in between: the signal that comes 300 s before the time is up reaches quantkit itself, which
# finishes its step and saves a checkpoint. Submitted again, the job goes on from there.
export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_PORT=${MASTER_PORT:-29500}
export WORLD_SIZE=$SLURM_NTASKS

srun --kill-on-bad-exit=1 bash -c '
    export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID
    exec quantkit train "$@" --resume-from-checkpoint' quantkit "$@"
