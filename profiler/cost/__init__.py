"""What a model costs on a device: memory and time from shapes alone, without weights and without torch.

    storage, work   bytes that a model holds; bytes and FLOPs of a pass
    roofline        seconds from bytes, FLOPs and launches
    rates           what these take on a device by its data sheet
    calibrated      and what they take on one that `profile calibrate` measured
    engines/NAME    what a runtime adds: memory rules, operators, efficiency
    prediction      whether a case fits, how fast it runs, and what binds

Every figure is an interval with its basis. Only ``exact`` ones may be taken at face value.
"""
