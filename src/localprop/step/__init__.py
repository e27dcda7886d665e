"""How one step runs: wiring, schedule, engine, and the engine's cost in bytes."""
