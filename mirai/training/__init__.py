"""Training of the AR model: one loop, exact resume, states that depend on nothing but their recipe."""
