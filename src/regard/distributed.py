"""Attention over sequences that are too long for one process: every process holds a shard.

Start the processes with torchrun (or any way that calls `torch.distributed.init_process_group`), cut queries, keys
and values with `shard`, and call `ring_attend` where one process would call `regard.attend`.
"""

from regard.attention.ring.maps import RingMap, ring_map
from regard.attention.ring.operator import ring_attend
from regard.attention.ring.shards import shard, sum_gradients, unshard

__all__ = ["RingMap", "ring_attend", "ring_map", "shard", "sum_gradients", "unshard"]
