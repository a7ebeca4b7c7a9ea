'use strict';
// Which part of lib/ may import which, checked by `npm run lint`. CONTRIBUTING.md says why.

// From the top down. A folder may import those below it, and those of its own row as long as no circle of folders comes
// of it. The last row is the ground: files of lib/ itself, which everything may import.
const rows = [
    ['cli/'],
    ['pipeline/'],
    ['report/', 'methods/', 'repair/', 'export/', 'stock/', 'cluster/'],
    ['search/', 'evaluation/', 'calibration/'],
    ['runtime/'],
    ['[^/]+[.]ts$']
];
const publicApi = '^lib/index[.]ts$';
const pathOf = (names) => `^lib/(${names.join('|')})`;

/** @type {import('dependency-cruiser').IConfiguration} */
module.exports = {
    forbidden: [
        ...rows.slice(1).map((row, above) => ({
            name: 'imports-go-down-only',
            comment: `What lies above ${row.join(' ')} uses it, not the other way round.`,
            severity: 'error',
            from: { path: pathOf(row), pathNot: publicApi },
            to: { path: pathOf(rows.slice(0, above + 1).flat()) }
        })),
        {
            name: 'no-import-of-the-public-api',
            comment: 'lib/index.ts is for users of the package: modules import what they need from where it is.',
            severity: 'error',
            from: { path: '^lib/' },
            to: { path: publicApi }
        },
        {
            name: 'no-cli-in-the-public-api',
            comment: 'The command line uses the library, not the other way round.',
            severity: 'error',
            from: { path: publicApi },
            to: { path: '^lib/cli/' }
        },
        {
            name: 'no-circle-of-files',
            comment: 'Files that import each other can only be read together.',
            severity: 'error',
            from: { path: '^lib/' },
            to: { circular: true }
        },
        {
            name: 'no-circle-of-folders',
            comment: 'Folders of one row may import each other in one direction only.',
            severity: 'error',
            scope: 'folder',
            from: { path: '^lib/' },
            to: { circular: true }
        },
        {
            name: 'no-files-in-search-and-methods',
            comment: 'They know blocks and scores. What they need of a file, or of its writing, is handed in.',
            severity: 'error',
            from: { path: '^lib/(search|methods)/' },
            to: { path: '^lib/(export/|runtime/gguf[.]ts$)' }
        },
        {
            name: 'no-scores-in-export',
            comment: 'The exporter knows tensors, never perplexity.',
            severity: 'error',
            from: { path: '^lib/export/' },
            to: { path: '^lib/(search|evaluation|calibration)/' }
        },
        {
            name: 'no-printing-outside-cli',
            comment: 'Only the command line knows options and prints.',
            severity: 'error',
            from: { path: '^lib/', pathNot: '^lib/cli/' },
            to: { path: '(^|/)node_modules/(@types/)?(yargs|cli-progress)/' }
        },
        {
            name: 'no-development-packages',
            comment: "What lib/ imports must be among package.json's dependencies, since users install no others.",
            severity: 'error',
            from: { path: '^lib/', pathNot: '^lib/report/vega[.]mts$' }, // which is bundled with what it imports
            to: {
                dependencyTypes: ['npm-dev', 'npm-no-pkg', 'npm-unknown'],
                dependencyTypesNot: ['type-only', 'npm-peer'] // which users install where they want what needs them
            }
        },
        {
            name: 'not-to-unresolvable',
            comment: 'An import that is not found is not checked.',
            severity: 'error',
            from: { path: '^lib/' },
            to: { couldNotResolve: true }
        }
    ],
    options: {
        doNotFollow: { path: 'node_modules' },
        tsPreCompilationDeps: true, // `import type` counts too
        tsConfig: { fileName: 'tsconfig.json' },
        enhancedResolveOptions: { exportsFields: ['exports'], conditionNames: ['import', 'node', 'default'] }
    }
};
