"""Take the picture of a queue's page in the management UI, for the README.

    pip install selenium; apt-get install chromium chromium-driver
    BROKER=docker python tools/screenshot.py        writes tools/pictures/queue-hello.png

It starts a broker of its own in Docker, puts the ten messages of simple/producer.py into the queue,
and photographs the page as a real browser shows it.
"""

from __future__ import annotations

import re
import sys
import tempfile
from argparse import ArgumentParser, RawDescriptionHelpFormatter

from broker import BrokerError, private
from end import ROOT, End
from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

PICTURE = ROOT / "tools" / "pictures" / "queue-hello.png"
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --hide-scrollbars"
    " --disable-background-networking --disable-component-update --disable-sync"
)


def photograph(ui: str) -> None:
    options = webdriver.ChromeOptions()
    for flag in FLAGS.split():
        options.add_argument(flag)
    with tempfile.TemporaryDirectory() as profile:
        options.add_argument(f"--user-data-dir={profile}")
        options.add_argument("--window-size=1000,760")
        service = webdriver.ChromeService("/usr/bin/chromedriver")
        with webdriver.Chrome(options, service) as browser:
            wait = WebDriverWait(browser, 30)
            browser.get(ui)
            fields = wait.until(lambda b: b.find_elements(By.CSS_SELECTOR, "#login input"))
            fields[0].send_keys("guest")
            fields[1].send_keys("guest")
            browser.find_element(By.CSS_SELECTOR, "#login input[type=submit]").click()
            wait.until(lambda b: b.find_elements(By.LINK_TEXT, "Queues and Streams"))
            browser.get(f"{ui}/#/queues/%2F/hello")
            # The UI has its counts every five seconds: the page is there before the ten messages.
            wait.until(lambda b: re.search(r"Ready\s+10\b", b.find_element(By.ID, "main").text))
            browser.save_screenshot(str(PICTURE))


def main() -> None:
    ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter).parse_args()
    with private() as broker:
        if not broker.ui_port:
            raise BrokerError("only Docker's broker has the management UI here: BROKER=docker")
        producer = End("simple/producer.py", url=broker.url)
        if producer.end() != 0:
            raise AssertionError(producer)
        photograph(f"http://localhost:{broker.ui_port}")
    print(f"{PICTURE.relative_to(ROOT)}: {PICTURE.stat().st_size // 1000} kB")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except (AssertionError, BrokerError, WebDriverException) as error:
        sys.exit(f"screenshot: {error}")
