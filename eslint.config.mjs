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
        'fetch',
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
        rules: { '@stylistic/max-len': ['error', { code: 120, tabWidth: 4, ignoreUrls: true }] }
    },
    {
        // Tests and benchmarks have scripts, expected messages and tables in their strings, which stay whole.
        files: ['test/**', 'bench/**'],
        rules: {
            '@stylistic/max-len': [
                'error',
                {
                    code: 120,
                    tabWidth: 4,
                    ignoreUrls: true,
                    ignoreStrings: true,
                    ignoreTemplateLiterals: true,
                    ignoreRegExpLiterals: true
                }
            ]
        }
    },
    { files: ['**/*.{js,cjs}'], languageOptions: { sourceType: 'commonjs', globals: node } },
    { files: ['**/*.mjs'], languageOptions: { globals: node } },
    {
        files: ['{lib,test}/**/*.ts'],
        extends: [tseslint.configs.recommendedTypeChecked],
        languageOptions: { parserOptions: { projectService: true } }
    }
);
