"use strict";
// Tables that a click on a heading sorts: first the larger numbers, or the earlier letters; empty cells last.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  const text = (row, column) => row.cells[column].textContent.trim();
  const value = (row, column) => parseFloat(text(row, column).replace(/[~,]/g, ""));
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const isText = head.classList.contains("text"), before = head.getAttribute("aria-sort");
      const ascending = before ? before === "descending" : isText;
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      const isEmpty = row => isText ? text(row, column) === "" : Number.isNaN(value(row, column));
      const rows = [...body.rows].sort((one, other) => {
        if (isEmpty(one) || isEmpty(other)) return isEmpty(one) - isEmpty(other);
        const order = isText
          ? text(one, column).localeCompare(text(other, column), "en", {numeric: true})
          : value(one, column) - value(other, column);
        return ascending ? order : -order;
      });
      body.append(...rows);
    });
  });
}
// The command of the verdict, to copy.
for (const box of document.querySelectorAll(".command")) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Copy";
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(box.querySelector("code").textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(box.querySelector("code"));
    }
  });
  box.append(button);
}
// The text of a point, beside the pointer.
const tip = document.createElement("div");
tip.className = "tip";
tip.hidden = true;
document.body.append(tip);
for (const title of document.querySelectorAll("svg a > title")) {
  const point = title.parentElement, text = title.textContent;
  point.setAttribute("aria-label", text);
  title.remove(); // the browser would show it as well
  const show = () => {
    tip.textContent = text;
    tip.hidden = false;
    const box = point.getBoundingClientRect(), width = tip.offsetWidth;
    const left = Math.min(box.right + 8, document.documentElement.clientWidth - width - 8);
    tip.style.left = `${Math.max(8, left) + scrollX}px`;
    tip.style.top = `${box.bottom + 6 + scrollY}px`;
  };
  const hide = () => { tip.hidden = true; };
  point.addEventListener("pointerenter", show);
  point.addEventListener("focus", show);
  point.addEventListener("pointerleave", hide);
  point.addEventListener("blur", hide);
}
