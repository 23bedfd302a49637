"""`python -m ptq_diffusion`."""

from ptq_diffusion.main import main

if __name__ == "__main__":
    main()
