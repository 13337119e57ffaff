"""What a model costs on a device: memory and time from shapes alone, without weights and without torch.

    storage, work   bytes that a model holds; bytes and FLOPs of a pass
    rates           how fast a device does them, by data sheet or by calibration
    engines/NAME    what a runtime adds: memory rules, operators, efficiency
    prediction      whether a case fits, how fast it runs, and what binds

Every figure is an interval with its basis. Only ``exact`` ones may be taken at face value.
"""
