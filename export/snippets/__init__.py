"""Programs that run one model without xfeat, in Python, JavaScript and C++, from ``templates/``. May import model."""
