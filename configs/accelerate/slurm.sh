#!/bin/bash
# Two nodes of eight GPUs under Slurm, one task a GPU: sbatch configs/accelerate/slurm.sh
# Three minutes before the time is over Slurm sends SIGUSR1 to each task: the run writes a checkpoint and ends with code
# 138, and the job is put back into the queue, where --resume auto goes on, on as many nodes as there are then if
# data.batch_size x accumulation x tasks stays the same. Preemption (SIGTERM, code 143) ends in the same way.
#SBATCH --job-name=ar-t2i
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --signal=USR1@180
#SBATCH --requeue
#SBATCH --open-mode=append

export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_PORT=29500
# export ACCELERATE_USE_FSDP=true FSDP_VERSION=2    # instead of DDP

srun --kill-on-bad-exit=1 bash -c 'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS \
  LOCAL_WORLD_SIZE=$SLURM_NTASKS_PER_NODE python train.py --config configs/cc3m.yaml --resume auto'
code=$?
if [ $code -eq 138 ] || [ $code -eq 143 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit $code
