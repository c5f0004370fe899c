// Equations are written between \( \) and \[ \] by the builder; KaTeX draws them here. `document$` is the theme's: it
// announces the first page and every page that replaces it.
document$.subscribe(({ body }) => {
  for (const element of body.querySelectorAll(".arithmatex")) {
    renderMathInElement(element, {
      delimiters: [
        { left: "\\(", right: "\\)", display: false },
        { left: "\\[", right: "\\]", display: true },
      ],
      throwOnError: false,
    });
  }
});
