from devdemo import demo_results  # noqa
