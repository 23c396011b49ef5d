"""Generation: text in, codes and waves out.

What bounds a step on a GPU (`slmkit/model/README.md`): reading the weights, 0.72 to 0.76 GB at Qwen2.5-0.5B's size,
which takes 0.16 ms at 4.8 TB/s for one slot, and 0.33 ms with the caches of 64. But a step has about 1 050 kernels,
which take the host 5 ms to start one by one. Hence the CUDA graph, in which the device takes some 1.3 us for each.
"""
