// Makes each line of code a block of its own, so that what wraps stands further in than its line, and no --option is cut.
document.addEventListener("DOMContentLoaded", () => {
  for (const code of document.querySelectorAll("div.highlight pre")) {
    const lines = code.innerHTML.replace(/\n$/, "").split("\n");
    code.innerHTML = lines.map((line) => `<span class="line">${line}\n</span>`).join("");
    for (const line of code.children) {
      const wrapped = line.textContent.search(/\S|$/) + 4;
      line.style.paddingLeft = `${wrapped}ch`;
      line.style.textIndent = `-${wrapped}ch`;
      line.innerHTML = line.innerHTML.replace(/(?<=[\s>])--[a-z][\w-]*/g, '<span class="option">$&</span>');
    }
  }
});
