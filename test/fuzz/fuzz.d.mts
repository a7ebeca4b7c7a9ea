/** See fuzz.mjs. */
export declare function fuzz(options: {
    models: string[];
    seed: number;
    count: number;
    workers?: number;
    folder: string;
}): Promise<{ refused: number; read: number; failures: { seed: number; why: string }[] }>;
