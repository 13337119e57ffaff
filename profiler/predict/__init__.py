"""Memory and time from geometry, quantization and device, without weights and without torch.

    memory.predict(case, geometry, quant, device)  -> Memory   bytes, per term
    timing.predict(case, geometry, quant, device)  -> Timing   seconds to load, to prefill, per decode step

Every term is an interval with its basis; only ``exact`` ones may be taken at face value.
"""
