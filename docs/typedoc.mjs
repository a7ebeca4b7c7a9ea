// A TypeDoc plugin that arranges docs/api.md: a section for each folder of lib/, in the order in which a reader wants
// them.
import { Application, Comment, CommentTag, Converter } from 'typedoc';
import { MarkdownPageEvent, MarkdownTheme, MarkdownThemeContext } from 'typedoc-plugin-markdown';

/** The title of each part of lib/. */
const sections = {
    pipeline: 'Prune, compare, inspect',
    cluster: 'Several computers',
    report: 'Results and reports',
    runtime: 'Models and blocks',
    calibration: 'Calibration',
    evaluation: 'Perplexity and tasks',
    methods: 'Methods',
    search: 'Search',
    repair: 'Repair',
    export: 'Pruned files',
    'output.ts': 'Pruned files',
    stock: 'The stock runtime',
    'errors.ts': 'Errors'
};

/** @param {import('typedoc-plugin-markdown').MarkdownApplication} app */
export function load(app) {
    app.renderer.defineTheme('reference', ReferenceTheme);
    app.on(Application.EVENT_BOOTSTRAP_END, () => {
        app.options.setValue('theme', 'reference');
        app.options.setValue('categoryOrder', [...new Set(Object.values(sections))]);
    });
    app.converter.on(Converter.EVENT_RESOLVE_BEGIN, ({ project }) => {
        for (const declaration of project.children) {
            const file = project.getSymbolIdFromReflection(declaration).packagePath;
            const section = sections[/^lib\/([^/]+)/.exec(file)?.[1]];
            if (section === undefined) {
                app.logger.error(`${declaration.name} comes from ${file}, for which docs/typedoc.mjs has no section`);
                continue;
            }
            declaration.comment ??= new Comment();
            declaration.comment.blockTags.push(new CommentTag('@category', [{ kind: 'text', text: section }]));
        }
    });
    app.renderer.on(MarkdownPageEvent.END, (page) => {
        page.contents = page.contents.replace(/ +$/gm, '');
    });
}

class ReferenceTheme extends MarkdownTheme {
    getRenderContext(page) {
        return new ReferenceContext(this, page, this.application.options);
    }
}

/** Leaves out what the signature above it says already: what is returned, and what a method overrides. */
class ReferenceContext extends MarkdownThemeContext {
    constructor(...args) {
        super(...args);
        const { signatureReturns } = this.partials;
        this.partials.signatureReturns = (signature, options) =>
            signature.comment?.getTag('@returns') ? signatureReturns(signature, options) : '';
        this.partials.inheritance = () => '';
    }
}
