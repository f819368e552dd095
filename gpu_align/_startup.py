"""What comes before all other imports."""

from gpu_align._interrupt import quit_quietly_while_importing

quit_quietly_while_importing()
