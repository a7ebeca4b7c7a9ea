import js from '@eslint/js';
import stylistic from '@stylistic/eslint-plugin';
import { defineConfig } from 'eslint/config';
import tseslint from 'typescript-eslint';

const node = Object.fromEntries(
    [
        'process',
        'console',
        'require',
        'module',
        '__dirname',
        '__filename',
        'Buffer',
        'URL',
        'TextDecoder',
        'TextEncoder',
        'AbortController',
        'performance',
        'structuredClone',
        'setTimeout',
        'clearTimeout',
        'setInterval',
        'clearInterval',
        'setImmediate'
    ].map((name) => [name, 'readonly'])
);

export default defineConfig(
    { ignores: ['dist/', 'build/', 'node_modules/'] },
    { linterOptions: { reportUnusedDisableDirectives: 'error' } },
    js.configs.recommended,
    {
        // Prettier breaks code at 120 characters, but neither comments nor strings.
        plugins: { '@stylistic': stylistic },
        rules: { '@stylistic/max-len': ['off', { code: 120, tabWidth: 4, ignoreUrls: true }] }
    },
    { files: ['**/*.{js,cjs}'], languageOptions: { sourceType: 'commonjs', globals: node } },
    { files: ['**/*.mjs'], languageOptions: { globals: node } },
    {
        files: ['{lib,test}/**/*.ts'],
        extends: [tseslint.configs.recommendedTypeChecked],
        languageOptions: { parserOptions: { projectService: true } },
        rules: {
            // An interface of its own keeps its name in the declarations and docs, where an alias is spelled out.
            '@typescript-eslint/no-empty-object-type': ['error', { allowInterfaces: 'with-single-extends' }]
        }
    }
);
