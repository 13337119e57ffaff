"""What a model costs on a device: memory and time from shapes alone, without weights and without torch.

    storage, work   bytes of a stored model; bytes and FLOPs of a pass
    roofline        seconds from bytes, FLOPs and launches
    rates           rates of a device according to its data sheet
    calibrated      rates of a device that `profile calibrate` measured
    engines/NAME    what an engine adds: memory rules, operators, efficiency
    prediction      whether a case fits, how fast it runs, and what limits it

Every figure is an interval with a basis. Only figures with the basis ``exact`` have no uncertainty.
"""
