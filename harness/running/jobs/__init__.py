"""Jobs and who runs them: in this process, one after another, or on Ray. Only ``on_ray`` and ``ranks``
import Ray, and everything runs without it."""
