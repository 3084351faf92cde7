"""From the web: pages and lists of URLs to candidates, URLs to bytes. Only here is code that talks to strangers."""
