"""predict.py, with 7 items in memory at once."""

import predict

if __name__ == "__main__":
    predict.PART = 7
    predict.main()
