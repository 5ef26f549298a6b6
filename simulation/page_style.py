"""How the report's page looks: one column, system fonts, light and dark."""

STYLE = """
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --surface: #ffffff; --ink: #1b1f24; --muted: #5d6673; --grid: #dfe3e8;
  --before: #c25400; --after: #0072b2; --lab: #8a93a0;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14171b; --surface: #1c2026; --ink: #e8ebef; --muted: #9aa4b1; --grid: #343b44;
    --before: #f08a3c; --after: #56b4e9; --lab: #7d8794;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif;
  font-variant-numeric: tabular-nums;
}
main { max-width: 1040px; margin: 0 auto; padding: 48px 24px 64px; }
h1 { font-size: 32px; line-height: 1.25; font-weight: 650; letter-spacing: -0.01em; margin: 8px 0 32px; max-width: 30em;
  text-wrap: balance; overflow-wrap: anywhere; }
h2 { font-size: 18px; line-height: 1.3; font-weight: 600; margin: 0 0 4px; }
p { margin: 0 0 12px; color: var(--muted); overflow-wrap: anywhere; }
.facts { margin: 0; font-weight: 500; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(180px, 1fr)); gap: 12px; margin-bottom: 12px; }
.thirds { grid-template-columns: repeat(auto-fit, minmax(max(180px, 30%), 1fr)); }
.figure, figure, section {
  background: var(--surface); border: 1px solid var(--grid); border-radius: 10px; padding: 20px 24px; margin: 0;
}
.figure { display: flex; flex-direction: column; gap: 2px; padding: 16px 20px; }
.figure strong { font-size: 28px; line-height: 1.2; font-weight: 650; white-space: nowrap; }
.figure span { font-size: 14px; }
.figure small { font-size: 13px; color: var(--muted); }
.figure.before strong { color: var(--before); }
.figure.after strong { color: var(--after); }
figure, section { margin-top: 12px; }
.plot svg { display: block; width: 100%; height: auto; margin-top: 8px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px; margin-top: 8px; }
th, td { text-align: left; padding: 8px 20px 8px 0; border-bottom: 1px solid var(--grid); vertical-align: top; }
tbody tr:last-child > * { border-bottom: 0; }
thead th { color: var(--muted); font-weight: 500; }
tbody th { font-weight: 600; white-space: nowrap; }
td.long { min-width: 12em; overflow-wrap: anywhere; }
ul { margin: 8px 0 0; padding-left: 20px; font-size: 14px; overflow-wrap: anywhere; }
pre {
  margin: 8px 0 12px; padding: 12px 16px; background: var(--page); border-radius: 6px; font-size: 14px;
  white-space: pre-wrap; overflow-wrap: anywhere;
}
@media print { body { background: none; } figure, section, .figure { break-inside: avoid; } }
"""
