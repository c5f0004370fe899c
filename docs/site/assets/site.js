// `document$` is the theme's: it announces the first page and every page that replaces it.
document$.subscribe(({ body }) => {
  // Equations are written between \( \) and \[ \] by the builder; KaTeX draws them here.
  for (const element of body.querySelectorAll(".arithmatex")) {
    renderMathInElement(element, {
      delimiters: [
        { left: "\\(", right: "\\)", display: false },
        { left: "\\[", right: "\\]", display: true },
      ],
      throwOnError: false,
    });
  }
  // The theme calls its search a dialog and gives it no name.
  body.querySelector("[data-md-component=search]")?.setAttribute("aria-label", "Search");
});
